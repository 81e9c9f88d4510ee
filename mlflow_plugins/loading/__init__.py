"""Loading of model versions: native, with hot reload, and as pyfunc. Internal: use the names of `mlflow_plugins`."""
