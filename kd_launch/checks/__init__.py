"""The preflight: what can be found out here that would otherwise fail in the queue or inside the job."""
