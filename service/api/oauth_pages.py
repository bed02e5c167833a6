"""The page on which a user signs in and grants, and the page for what cannot be sent back.

No script, readable on a phone, every text from outside escaped.
"""

from html import escape
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from service.domain.scopes import Scope
from service.use_cases.oauth import AuthorizationRequest

_STYLE: Final = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 24rem; padding: 2rem 1.25rem; }
h1 { font-size: 1.4rem; line-height: 1.25; overflow-wrap: anywhere; }
label { display: block; margin-top: 1rem; font-weight: 600; }
input { box-sizing: border-box; width: 100%; font: inherit; padding: .6rem; margin-top: .25rem; }
button { box-sizing: border-box; width: 100%; font: inherit; font-weight: 600; padding: .75rem;
         margin-top: 1.25rem; border-radius: .4rem; border: 1px solid #1f5fbf; cursor: pointer; }
button.allow { background: #1f5fbf; color: #fff; }
button.deny { background: transparent; color: inherit; border-color: currentColor;
              margin-top: .75rem; }
.fault { border-left: .25rem solid #c33; padding-left: .75rem; }
small { overflow-wrap: anywhere; }
"""


def show_sign_in(
    service_name: str,
    request: AuthorizationRequest,
    parameters: dict[str, str],
    csrf: str,
    *,
    action: str,
    nonce: str,
    fault: str = "",
    email: str = "",
    status: int = 200,
) -> web.Response:
    """Return the page with its form, which sends the request's parameters along to `action`."""
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in {**parameters, "csrf": csrf}.items()
    )
    wishes = "".join(
        f"<li>{escape(scope.meaning)}</li>" for scope in Scope if scope in request.scopes
    )
    name = escape(request.client.name)
    target = urlsplit(request.redirect_uri)
    body = f"""
<h1>Sign in to {escape(service_name)} for {name}</h1>
<p>{name} wants to:</p>
<ul>{wishes}</ul>
{f'<p class="fault" role="alert">{escape(fault)}</p>' if fault else ""}
<form method="post" action="{escape(action)}">
{hidden}
<label for="email">E-mail</label>
<input id="email" name="email" type="email" autocomplete="username" value="{escape(email)}">
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password">
<button class="allow" name="decision" value="allow">Sign in and allow</button>
<button class="deny" name="decision" value="deny" formnovalidate>Deny</button>
</form>
<p><small>You go on to {escape(target.scheme)}://{escape(target.netloc)}</small></p>
"""
    # Browsers apply form-action to the redirect that follows the form as well.
    # A policy has no way to write an IPv6 address, or an app's own scheme with a host.
    writable = target.netloc and "[" not in target.netloc
    go_on = f"{target.scheme}://{target.netloc}" if writable else f"{target.scheme}:"
    return _page("Sign in", body, nonce, f"'self' {go_on}", status)


def show_refusal(description: str, nonce: str, status: int = 400) -> web.Response:
    """Return the page for a request that must not be sent back to whom it claims to be from."""
    body = f"""
<h1>This sign-in cannot go on</h1>
<p class="fault">{escape(description)}</p>
<p>Go back to where you came from. If it happens again, tell its makers.</p>
"""
    return _page("Sign-in refused", body, nonce, "'none'", status)


def _page(title: str, body: str, nonce: str, form_action: str, status: int) -> web.Response:
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; form-action {form_action}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    # By "no-referrer", which the header says, browsers would also hide the origin of the form.
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="referrer" content="same-origin">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><style nonce="{nonce}">{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )
    return web.Response(
        text=text,
        status=status,
        content_type="text/html",
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
    )
