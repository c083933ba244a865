"""GET /docs: Swagger UI from files on this machine; no address outside is in the page.

The files (Swagger UI 5, which reads OpenAPI 3.1) come with the package fastapi-swagger; only its
files are used, its code is not imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from hearth.core.errors import HearthError

_PACKAGE = "fastapi_swagger"
_MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}


def docs_router(openapi_url: str) -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=openapi_url,
            title="hearth",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon-32x32.png",
        )

    def add_file(name: str, media_type: str) -> None:
        @router.get(f"/docs/{name}")
        async def file() -> FileResponse:
            return FileResponse(_resources() / name, media_type=media_type)

    for name, media_type in _MEDIA_TYPES.items():
        add_file(name, media_type)
    return router


def _resources() -> Path:
    """Where the files lie. Raises HearthError when the package is missing."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise HearthError(
            f"the files of Swagger UI are missing: the package {_PACKAGE} is not installed",
            hint="pip install fastapi-swagger",
        )
    return Path(spec.submodule_search_locations[0]) / "resources"
