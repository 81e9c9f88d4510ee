"""The jobs that `MLproject` names, each inside one MLflow run."""
