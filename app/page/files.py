"""The files of the page at `/`, by the paths they have."""

from __future__ import annotations

from pathlib import Path

from ..http.assets import Asset, assets_in

DIRECTORY = Path(__file__).parent / "assets"


def page_assets(protected: bool) -> dict[str, Asset]:
    """Return the page's assets by path. Its links are relative to `/`, so no other path has it.

    The page asks for the API key if `protected`.
    """
    assets = assets_in(DIRECTORY, "/page", {"key": "needed" if protected else "none"})
    return {"/": assets.pop("/page/index.html"), **assets}
