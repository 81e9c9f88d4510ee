"""The HTTP service `plantmodels serve`. Internal: start it by the command, or `plantmodels.service.run.run_service`."""
