"""A YAML file becomes a Spec and a Cluster, or every error with its line."""
