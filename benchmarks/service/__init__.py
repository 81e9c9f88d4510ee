"""What the HTTP service costs, beside `mlflow models serve`, a bare uvicorn echo and a native thread pool."""
