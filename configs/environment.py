"""The environment variables that Windrose itself reads, servers and clients alike."""

API_KEY = "WINDROSE_API_KEY"
ADMIN_API_KEY = "WINDROSE_ADMIN_API_KEY"
OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"  # of the OpenTelemetry standard
