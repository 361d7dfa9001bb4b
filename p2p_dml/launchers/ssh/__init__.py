"""Several hosts over the system's ssh: what to start where, checks, installation, the run."""
