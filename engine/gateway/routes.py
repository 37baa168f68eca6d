"""All routes of the SDK: those that are served, and those that are refused by name."""

from . import (
    file_routes,
    future_routes,
    rest_routes,
    sampling_routes,
    session_routes,
    training_routes,
)
from .session_routes import refuse

REFUSED = [
    refuse("POST /api/v1/auth/token"),
    refuse("GET /api/v1/auth/apikey/{key}"),
    refuse("DELETE /api/v1/auth/apikey/{key}"),
    refuse("POST /api/v1/create_custom_loss"),
    refuse("PUT /api/v1/sessions/{session_id}/project"),
    refuse("POST /api/v1/sessions/search"),
    refuse("GET /api/v1/sessions/{session_id}/trace_export"),
    refuse("GET /api/v1/audit"),
    refuse("GET /api/v1/billing/usage/events"),
    refuse("GET /api/v1/billing/usage/checkpoints/current"),
]

ROUTES = [
    *session_routes.ROUTES,
    *training_routes.ROUTES,
    *sampling_routes.ROUTES,
    *future_routes.ROUTES,
    *rest_routes.ROUTES,
    *file_routes.ROUTES,
    *REFUSED,
]
