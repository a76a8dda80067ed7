"""The admin port: metrics, liveness and readiness."""
