"""What oauthlib asks about each request, where our answer is another one than allauth's.

Stricter: PKCE by S256 for every client, redirect URIs exactly as registered, `openid` in every request. Bound: codes
and tokens end with the stamp of their login and with their family (grants.py). The rest is allauth's.
"""

import secrets
import time
from datetime import timedelta
from typing import Any

from allauth.core import context
from allauth.idp.oidc import app_settings
from allauth.idp.oidc.adapter import get_adapter
from allauth.idp.oidc.internal.oauthlib.request_validator import OAuthLibRequestValidator
from allauth.idp.oidc.internal.oauthlib.utils import get_validator_context
from allauth.idp.oidc.internal.tokens import decode_jwt_token
from allauth.idp.oidc.models import Client, Token
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from oauthlib.common import Request
from oauthlib.oauth2.rfc6749 import errors
from oauthlib.openid.connect.core.exceptions import RequestNotSupported, RequestURINotSupported

from caplai.portal.access import proved_at
from caplai.portal.oidc import grants
from caplai.portal.oidc.adapter import SCOPES
from caplai.service import federation, sittings

S256 = "S256"


def is_older(request: HttpRequest) -> bool:
    """Whether the sign-in is older than the client takes (`max_age`, in seconds; OpenID Connect Core 1.0, 3.1.2.1)."""
    asked = request.GET.get("max_age", "")
    if not (asked.isascii() and asked.isdigit()):
        return False
    return time.time() - proved_at(request) > int(asked[:10])


class Validator(OAuthLibRequestValidator):
    """Made anew for each request; `_grant` is the code or refresh token that it exchanges."""

    _grant: Token | None = None

    # --- the authorization request ---

    def validate_redirect_uri(self, client_id, redirect_uri, request: Request, *args, **kwargs) -> bool:
        return redirect_uri in request.client.get_redirect_uris()

    def validate_response_type(
        self, client_id, response_type, client, request: Request, *args, **kwargs
    ) -> bool:
        """Raises what tells the client which part of its request there is not (Core 1.0, 6.1, 6.2; RFC 6749, 4.1.2.1).

        Asked for once it is known where the client may hear of it. The request is the one that the browser brought: a
        form of ours has a field `request`, too.
        """
        asked = context.request.GET
        if asked.get("request"):
            raise RequestNotSupported(request=request)
        if asked.get("request_uri"):
            raise RequestURINotSupported(request=request)
        if asked.get("response_mode") not in (None, "", "query"):
            raise errors.InvalidRequestError("There is no response_mode but query.", request=request)
        if not super().validate_response_type(client_id, response_type, client, request):
            raise errors.UnsupportedResponseTypeError(request=request)
        return True

    def validate_scopes(self, client_id, scopes, client, request: Request, *args, **kwargs) -> bool:
        """Scopes that there are not are left out (Core 1.0, 3.1.2.1); the answer with the tokens names the rest."""
        request.scopes = [scope for scope in scopes if scope in SCOPES]
        return "openid" in request.scopes and super().validate_scopes(
            client_id, request.scopes, client, request
        )

    def is_pkce_required(self, client_id, request: Request) -> bool:
        if request.code_challenge is not None and request.code_challenge_method != S256:
            raise errors.UnsupportedCodeChallengeMethodError(request=request)
        return True

    def validate_silent_login(self, request: Request) -> bool:
        login = context.request.user
        return (
            login.is_authenticated
            and login.account_id is not None
            and not is_older(context.request)
            and super().validate_silent_login(request)
        )

    def validate_silent_authorization(self, request: Request) -> bool:
        client = request.client
        if client.type == Client.Type.PUBLIC and not request.redirect_uri.startswith("https://"):
            return False  # any app may claim that address (RFC 8252, 8.6), so a person looks each time
        return client.skip_consent or grants.has_granted(request.user, client, set(request.scopes))

    def validate_user_match(self, id_token_hint, scopes, claims, request: Request) -> bool:
        """Whether who is in is whom the client means. An ID token is good as a hint after it has expired, too."""
        if not id_token_hint:
            return True
        hint = decode_jwt_token(id_token_hint, client_id=request.client.id, verify_exp=False, verify_iss=True)
        login = context.request.user
        if hint is None or not login.is_authenticated:
            return False
        return hint.get("sub") == get_adapter().get_user_sub(request.client, login)

    # --- codes ---

    def save_authorization_code(self, client_id, code, request: Request, *args, **kwargs) -> None:
        """Store its hash. In a session that was ended meanwhile nothing is, so that the code is worth nothing."""
        with transaction.atomic():
            place = sittings.place(request.user, context.request.session.row_key)
            if place is not None:
                self._save_code(code["code"], request, place)

    def _save_code(self, value: str, request: Request, place: sittings.Place) -> None:
        now = time.time()
        row = Token(
            type=Token.Type.AUTHORIZATION_CODE,
            client=request.client,
            user=request.user,
            expires_at=timezone.now() + timedelta(seconds=app_settings.AUTHORIZATION_CODE_EXPIRES_IN),
            data={
                "stamp": request.user.stamp,
                "family": secrets.token_hex(16),
                "ends": now + settings.CAPLAI.oidc.refresh_lifetime.total_seconds(),
                "auth_time": int(proved_at(context.request)),
                "sitting": place.sitting,
                "device": place.device,
                "redirect_uri": request.redirect_uri,
                "nonce": request.nonce,
                "challenge": request.code_challenge,
            },
        )
        row.set_value(value)
        row.set_scopes(request.scopes)
        row.save()

    def _lookup_authorization_code(self, request: Request, client_id: str, code: str) -> dict | None:
        """As allauth's other answers about codes read it. It promises nothing: `validate_code` decides."""
        row = Token.objects.lookup(Token.Type.AUTHORIZATION_CODE, code or "")
        if row is None or row.client_id != client_id or not isinstance(row.data, dict):
            return None
        return {
            "redirect_uri": row.data["redirect_uri"],
            "scopes": row.get_scopes(),
            "code": {"nonce": row.data["nonce"]},
            "pkce": {"code_challenge": row.data["challenge"], "code_challenge_method": S256},
        }

    def validate_code(self, client_id, code, client, request: Request, *args, **kwargs) -> bool:
        row = self._to_exchange(client_id, Token.Type.AUTHORIZATION_CODE, code, request)
        if row is None or not isinstance(row.data, dict):
            return False
        request.scopes = grants.scopes(row)
        request.code_challenge, request.code_challenge_method = row.data["challenge"], S256
        return True

    def invalidate_authorization_code(self, client_id, code, request: Request, *args, **kwargs) -> None:
        assert self._grant is not None
        grants.use(self._grant)

    # --- tokens ---

    def _to_exchange(self, client_id: str, kind: Token.Type, value: str, request: Request) -> Token | None:
        row = grants.find(client_id, kind, value)
        if row is None:
            return None
        if isinstance(row.data, dict) and row.data.get("used"):
            grants.end_family(row)
            return None
        request.user = grants.holder(row)
        self._grant = row
        return row if request.user is not None else None

    def validate_refresh_token(self, refresh_token, client, request: Request, *args, **kwargs) -> bool:
        row = self._to_exchange(client.id, Token.Type.REFRESH_TOKEN, refresh_token, request)
        get_validator_context().refresh_token = row
        if request.scope:
            request.scope = " ".join(scope for scope in request.scope.split() if scope in SCOPES)
        return row is not None

    def get_original_scopes(self, refresh_token, request: Request, *args, **kwargs) -> list[str]:
        assert self._grant is not None
        return grants.scopes(self._grant)

    def finalize_id_token(self, id_token: dict, token: dict, token_handler, request: Request) -> str:
        assert self._grant is not None and isinstance(self._grant.data, dict)
        id_token["auth_time"] = self._grant.data["auth_time"]
        return super().finalize_id_token(id_token, token, token_handler, request)

    def save_bearer_token(self, token: dict, request: Request, *args, **kwargs) -> None:
        """Store the hashes of a new access token and, if the client may refresh, of a new refresh token.

        A client that asks for less than it was granted gets that less as an access token; the refresh token goes on as
        it was (RFC 6749, 6).
        """
        grant, now = self._grant, timezone.now()
        assert grant is not None
        access = Token(type=Token.Type.ACCESS_TOKEN, expires_at=now + timedelta(seconds=token["expires_in"]))
        made = {"access_token": access}
        if Client.GrantType.REFRESH_TOKEN in request.client.get_grant_types():
            made["refresh_token"] = Token(type=Token.Type.REFRESH_TOKEN)
        else:
            token.pop("refresh_token", None)
        if grant.type == Token.Type.REFRESH_TOKEN:
            grants.use(grant)
        elif grants.is_first(request.user, request.client, grant):
            federation.tell_sign_in(request.user, request.client.name, (grant.data or {}).get("sitting"))
        for name, row in made.items():
            row.client, row.user = request.client, request.user
            row.set_value(token[name])
            row.set_scopes(request.scopes if row is access else grants.scopes(grant))
            grants.bound(row, grant)
        Token.objects.bulk_create(made.values())

    def validate_bearer_token(self, token, scopes, request: Request) -> bool:
        if not super().validate_bearer_token(token, scopes, request):
            return False
        access = get_validator_context().access_token
        if access is None:
            return False
        request.user, request.scopes = grants.holder(access), grants.scopes(access)
        return request.user is not None

    def revoke_token(self, token, token_type_hint, request: Request, *args, **kwargs) -> None:
        """End a token of the client that asks; with a refresh token its whole family (RFC 7009, 2.1)."""
        if refresh := grants.find(request.client.id, Token.Type.REFRESH_TOKEN, token):
            grants.end_family(refresh)
        elif access := grants.find(request.client.id, Token.Type.ACCESS_TOKEN, token):
            access.delete()

    def _lookup_client(self, request: Request, client_id: Any) -> Client | None:
        """PostgreSQL takes no text with a null character."""
        return None if "\0" in str(client_id) else super()._lookup_client(request, client_id)
