"""The environment variables that Windrose itself reads, servers and clients alike.

Those of the hub mean what huggingface_hub says; its offline mode and token it is asked for.
"""

API_KEY = "WINDROSE_API_KEY"
ADMIN_API_KEY = "WINDROSE_ADMIN_API_KEY"
OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"  # of the OpenTelemetry standard
HUB_ENDPOINT = "HF_ENDPOINT"
HUB_CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
