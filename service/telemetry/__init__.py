"""What operators see: logs, the access log, metrics."""
