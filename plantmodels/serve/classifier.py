"""`PlantClassifier`: species, out-of-distribution score and disease of each image.

>>> classifier = PlantClassifier.load(bundle, threads=1)
>>> prediction = classifier.predict([image.read_bytes()])[0]
>>> prediction.error, prediction.species in classifier.taxonomy.species
(None, True)
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import onnxruntime as ort

from plantmodels.arrays import Embeddings, Inputs, Labels, Logits, Probabilities
from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.layout import (
    DISEASE_OUTPUT,
    EMBEDDING,
    PACKED_HEADS_FILE,
    SPECIES_FILES,
    SPECIES_OUTPUT,
    Precision,
)
from plantmodels.bundle.manifest import Manifest
from plantmodels.bundle.metadata import Metadata
from plantmodels.errors import BundleError, ImageError
from plantmodels.serve.image_input import ImageLike, image_to_input
from plantmodels.serve.loading import BundleContents, LoadOptions, read_bundle
from plantmodels.serve.models import (
    SpeciesModel,
    check_models,
    check_output_shape,
    name_failing_model,
    run_packed_heads,
)
from plantmodels.serve.prediction import Candidate, Outputs, Prediction
from plantmodels.serve.routing import (
    ROUTINGS,
    DiseaseAnswer,
    DiseaseMixture,
    Routing,
    add_given_species,
    route_hard,
    softmax,
)
from plantmodels.serve.session import list_running_providers, release_free_memory

CHUNK: Final = 32
"""Number of images that are held as network input at once; bounds memory for any number of images."""

OnError = Literal["row", "raise"]
ON_ERROR: Final[tuple[OnError, ...]] = get_args(OnError)
"""What a bad image does: give a row with `error`, or raise."""


class PlantClassifier:
    """A loaded bundle, which several threads may use at once.

    Attributes:
        metadata: the bundle's metadata.
        taxonomy: all species and diseases, in logit order.
        detector: the out-of-distribution detector.
        precision: the precision of the species model, "int8" or "fp16".
        allow_paths: whether an image may be given as the path of a file.
        species_model: the species model.
        heads_session: the session of the packed disease heads.
    """

    def __init__(
        self,
        metadata: Metadata,
        detector: OODDetector,
        species_model: SpeciesModel,
        heads_session: ort.InferenceSession,
        *,
        precision: Precision,
        allow_paths: bool = False,
    ) -> None:
        """Join loaded parts; use `load` to get a classifier from a bundle.

        Raises:
            BundleError: names or shapes of the parts do not fit each other.
            DetectorError: the detector reads embeddings of another length.
        """
        check_models(metadata, precision, species_model.session, heads_session)
        detector.check_length(metadata.embedding_dim)
        self.metadata = metadata
        self.taxonomy = metadata.taxonomy
        self.detector = detector
        self.precision = precision
        self.allow_paths = allow_paths
        self.species_model = species_model
        self.heads_session = heads_session
        self._mixture = DiseaseMixture(metadata.taxonomy)
        self._origin: tuple[Path, LoadOptions, dict[str, Any]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the classifier as its folder, options and manifest; it is opened again where it arrives.

        Raises:
            TypeError: the classifier was not opened from a folder.
        """
        if self._origin is None:
            raise TypeError("a classifier made of parts cannot be pickled; use PlantClassifier.load(folder)")
        return _reopen, self._origin

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **options: Any) -> "PlantClassifier":
        """Load a bundle. Every digest and the class order are checked before a session opens.

        Each file is read once, and the bytes that were checked are the bytes that are used. If the bundle is replaced
        meanwhile, the result is the old bundle or the new one, never a mixture.

        Args:
            folder: the bundle.
            options: the fields of `LoadOptions`: precision, threads, workers, providers, allow_paths, public_key.

        Raises:
            SignatureError: the bundle is not signed by the public key.
            BundleError: files differ from the manifest, the metadata and the list of heads disagree, or a session
                does not open.
            DetectorError: the detector's file is unsafe or malformed.
            ValueError: an option has a value that `LoadOptions` refuses.
        """
        checked = LoadOptions(**options)
        contents = read_bundle(Path(folder), models=checked.model_files, public_key=checked.public_key)
        classifier = cls.from_contents(contents, checked)
        del contents  # the models' bytes, so that they are returned to the system too
        release_free_memory()
        return classifier

    @classmethod
    def from_contents(
        cls, contents: BundleContents, options: LoadOptions, *, heads_session: ort.InferenceSession | None = None
    ) -> "PlantClassifier":
        """Open a classifier from a bundle that was read before.

        Args:
            contents: what `read_bundle` returned, for any number of classifiers.
            options: how to open the sessions. `public_key` is not looked at: `read_bundle` checks signatures.
            heads_session: the `heads_session` of another classifier of this bundle, to share; None opens the heads.

        Raises:
            BundleError: a session does not open, or the models do not fit the metadata.
            DetectorError: the detector reads embeddings of another length.
        """
        species_model = contents.open_species_model(options)
        classifier = cls(
            contents.metadata,
            contents.detector,
            species_model,
            contents.open_packed_heads(options) if heads_session is None else heads_session,
            precision=options.precision,
            allow_paths=options.allow_paths,
        )
        classifier._origin = contents.folder.absolute(), options, contents.manifest.to_dict()
        return classifier

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that run the species model, in order of preference."""
        return list_running_providers(self.species_model.session)

    def embed(self, inputs: Inputs) -> tuple[Logits, Embeddings]:
        """Return species logits and embeddings: run only the species model, as `SpeciesModel.run` does.

        Raises:
            BundleError: the model fails, or its output has another shape than it declares.
        """
        file = SPECIES_FILES[self.precision]
        with name_failing_model(file):
            logits, embedding = self.species_model.run(inputs)
        check_output_shape(file, SPECIES_OUTPUT, logits, len(inputs), len(self.taxonomy.species))
        check_output_shape(file, EMBEDDING, embedding, len(inputs), self.metadata.embedding_dim)
        return logits, embedding

    def run_heads(self, embedding: Embeddings, species_index: Labels) -> Logits:
        """Return the disease logits of images of any species: run only the packed heads, as `run_packed_heads` does.

        Raises:
            BundleError: the model fails, or its output has another shape than it declares.
        """
        with name_failing_model(PACKED_HEADS_FILE):
            logits = run_packed_heads(self.heads_session, embedding, species_index)
        diseases = max(1, self.taxonomy.max_diseases)
        check_output_shape(PACKED_HEADS_FILE, DISEASE_OUTPUT, logits, len(embedding), diseases)
        return logits

    def run(self, inputs: Inputs) -> Outputs:
        """Compute everything for normalized inputs. The disease head is chosen by hard routing.

        Args:
            inputs: (N, 3, P, P) float32, normalized; N is at least 1.

        Raises:
            BundleError: a model fails, or its output has another shape than it declares.
            ValueError: the inputs have another shape or dtype.
        """
        size = self.metadata.preprocessing.image_size
        if inputs.dtype != np.float32 or inputs.shape[1:] != (3, size, size) or not len(inputs):
            raise ValueError(f"inputs must be (N ≥ 1, 3, {size}, {size}) float32, got {inputs.shape} {inputs.dtype}")
        species_logits, embedding = self.embed(inputs)
        species_index = species_logits.argmax(axis=1).astype(np.int64)
        disease_logits = self.run_heads(embedding, species_index)
        return Outputs(species_logits, embedding, species_index, disease_logits, self.detector.score(embedding))

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        top_k: int = 0,
        routing: Routing = "hard",
        return_embedding: bool = False,
        on_error: OnError = "row",
    ) -> list[Prediction]:
        """Classify images and return one prediction per image, in order.

        A bad image never fails its neighbours, unless `on_error` is "raise".

        Args:
            images: encoded bytes or their base64 text, Pillow images, (H, W, 3) uint8 arrays, normalized (3, P, P)
                float32 arrays, and paths if they are allowed, in any mixture. They are read in chunks, so an iterator
                of any length needs bounded memory. A Pillow image that was not read yet stays decoded afterwards.
            top_k: number of the most probable species to add as candidates; 0 adds none.
            routing: "hard": the head of the most probable species names the disease, and `disease_probability` says
                how likely species and disease are both right. "soft": the disease with the highest probability over all
                species (`DiseaseMixture`) is named, whichever species it belongs to, and `disease_probability` says how
                likely it is right, whatever the species.
            return_embedding: whether to add the embedding.
            on_error: "row" gives a bad image a prediction with `error`; "raise" raises at the first bad image.

        Raises:
            BundleError: a model fails, or its output has another shape than it declares.
            ImageError: an image is bad and `on_error` is "raise".
            ValueError: an option has a value that is not listed above.
        """
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if routing not in ROUTINGS:
            raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, got {routing!r}")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
            raise ValueError(f"top_k must be an integer of at least 0, got {top_k!r}")
        rows: list[Prediction] = []
        iterator = iter(images)
        while chunk := list(islice(iterator, CHUNK)):
            rows.extend(self._predict_chunk(chunk, len(rows), top_k, routing, return_embedding, on_error))
        return rows

    def _predict_chunk(
        self,
        images: Sequence[ImageLike],
        offset: int,
        top_k: int,
        routing: Routing,
        return_embedding: bool,
        on_error: OnError,
    ) -> Iterator[Prediction]:
        read = self.species_model.map(self._read_image, images)
        errors = {position: found for position, found in enumerate(read) if isinstance(found, ImageError)}
        if errors and on_error == "raise":
            position, error = next(iter(errors.items()))
            raise ImageError(f"image {offset + position}: {error}") from error
        inputs = [found for found in read if not isinstance(found, ImageError)]
        outputs = self.run(np.stack(inputs)) if inputs else None
        predictions = iter(
            () if outputs is None else self._build_predictions(outputs, top_k, routing, return_embedding)
        )
        for position in range(len(images)):
            yield Prediction(error=str(errors[position])) if position in errors else next(predictions)

    def _read_image(self, image: ImageLike) -> Inputs | ImageError:
        try:
            return image_to_input(image, self.metadata.preprocessing, allow_paths=self.allow_paths)
        except ImageError as error:
            return error

    def _build_predictions(
        self, outputs: Outputs, top_k: int, routing: Routing, return_embedding: bool
    ) -> Iterator[Prediction]:
        species_probability = softmax(outputs.species_logits, self.metadata.species_temperature)
        rejected = self.detector.rejects(outputs.ood_scores)
        p_values = self.detector.p_values(outputs.ood_scores, outputs.species_index)
        diseases = self.name_diseases(outputs, routing)
        for row, index in enumerate(outputs.species_index.tolist()):
            logits, probabilities = outputs.species_logits[row], species_probability[row]
            yield Prediction(
                species=self.taxonomy.species[index],
                species_index=index,
                species_probability=float(probabilities[index]),
                disease=diseases[row].name,
                disease_probability=diseases[row].probability,
                disease_given_species_probability=diseases[row].given_species,
                ood_score=float(outputs.ood_scores[row]),
                ood_p_value=None if p_values is None else float(p_values[row]),
                rejected=bool(rejected[row]),
                candidates=self._find_candidates(logits, probabilities, top_k) if top_k else None,
                embedding=outputs.embedding[row] if return_embedding else None,
            )

    def name_diseases(
        self, outputs: Outputs, routing: Routing, *, temperatures: tuple[float, float] | None = None
    ) -> list[DiseaseAnswer]:
        """Return each image's disease with its probabilities, as `predict` serves them.

        Args:
            outputs: what the models computed for N images.
            routing: how the disease is chosen.
            temperatures: of P(species) and of P(disease | species); None for those that are served.
        """
        served = self.metadata.species_temperature, self.metadata.disease_temperature
        species_temperature, temperature = temperatures or served
        species, logits = outputs.species_index, outputs.disease_logits
        if routing == "hard":
            chances = softmax(outputs.species_logits, species_temperature)
            return route_hard(self.taxonomy, species, chances[np.arange(len(species)), species], logits, temperature)
        named = self._mixture.name_diseases(
            outputs.species_logits,
            outputs.embedding,
            self.run_heads,
            species_temperature=species_temperature,
            disease_temperature=temperature,
        )
        return add_given_species(self.taxonomy, species, logits, temperature, named)

    def _find_candidates(self, logits: Logits, probabilities: Probabilities, top_k: int) -> tuple[Candidate, ...]:
        best = np.argsort(-logits, kind="stable")[:top_k]
        return tuple(Candidate(self.taxonomy.species[i], float(probabilities[i])) for i in best)


def _reopen(folder: Path, options: LoadOptions, manifest: dict[str, Any]) -> PlantClassifier:
    """Open a pickled classifier again, from the very files that it was opened from.

    Raises:
        BundleError: the folder is gone, or holds another bundle now.
    """
    if not folder.is_dir():
        raise BundleError(
            f"{folder}: no such folder; a pickled classifier is opened again from the folder of its bundle"
        )
    known = Manifest.from_dict(manifest)
    contents = read_bundle(folder, models=options.model_files, every_file=False, manifest=known)
    return PlantClassifier.from_contents(contents, options)
