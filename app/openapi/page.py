"""`/docs`: Swagger UI, whose files come with the package."""

from __future__ import annotations

from pathlib import Path

from ..http.assets import Asset, assets_in
from ..http.restriction import Restriction

DIRECTORY = Path(__file__).parent / "assets"


def docs_assets(protected: bool, with_page: bool, restriction: Restriction) -> dict[str, Asset]:
    """Return the page and its files by path.

    They are public, but the group `metadata` of `restriction` holds for them as for the document.
    The page asks for the API key if `protected`, and links to the page at `/` if `with_page`.
    """
    state = {"key": "needed" if protected else "none", "page": "on" if with_page else "off"}
    assets = assets_in(
        DIRECTORY, "/docs/assets", state, lambda scope: restriction.check("metadata", scope)
    )
    return {"/docs": assets.pop("/docs/assets/docs.html"), **assets}
