"""The only place that imports MLflow: the flavor, and the jobs that `MLproject` runs."""
