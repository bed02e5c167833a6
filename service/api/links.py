"""Share links, which people follow in their browsers."""

from aiohttp import web
from aiohttp_apispec import docs

from service.api.docs.describe import in_path
from service.api.http.app_keys import SERVICES
from service.api.http.requests import public_path


@docs(
    tags=["Programmes"],
    summary="Follow a share link",
    description="Redirects to the programme's landing page, with `ref=CODE` added if the code is "
    "live.",
    parameters=[in_path("code", "The referral code.", "7GXKQ2MPRT")],
    responses={
        302: {
            "description": "A redirect to the landing page, or to this service's start page if "
            "there is none."
        }
    },
)
async def follow_link(request: web.Request) -> web.Response:
    landing = await request.app[SERVICES].links.follow(request.match_info["code"])
    headers = {"Location": landing or public_path(request, "/"), "Cache-Control": "no-store"}
    return web.Response(status=302, headers=headers)
