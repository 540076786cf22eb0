"""The page of the clients that somebody signed in to, and the same for the app (ASVS 5.0, 10.4.9 and 10.7.3)."""

from typing import ClassVar

from allauth.headless.base.views import AuthenticatedAPIView
from allauth.headless.constants import Client as Headless
from allauth.headless.internal.restkit.inputs import CharField, Input
from allauth.headless.internal.restkit.response import APIResponse
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST
from typing_extensions import TypedDict

from caplai.portal.access import owner
from caplai.portal.oidc import grants
from caplai.portal.oidc.adapter import SCOPES
from caplai.signin.answers import Time, shape
from caplai.signin.api import Endpoint


@owner
def shown(request: HttpRequest) -> HttpResponse:
    """Which there are, and what each of them knows."""
    there = [
        {"client": one.client, "since": one.since, "knows": [SCOPES[scope] for scope in one.scopes]}
        for one in grants.agreements(request.user)
    ]
    return render(request, "oidc/apps.html", {"agreements": there})


@require_POST
@owner
def end(request: HttpRequest) -> HttpResponse:
    """End one; the next time it has to ask."""
    name = grants.end_agreement(request.user, request.POST.get("client_id", ""))
    if name is not None:
        said = _("From now on %(name)s cannot see your information, until you sign in there again.")
        messages.success(request, said % {"name": name})
    return redirect("account_apps")


class EndInput(Input):
    client_id = CharField(max_length=100)


@shape
class ShownService(TypedDict):
    """Another site or app that one signed in to with the account."""

    client_id: str
    name: str
    scopes: list[str]
    since: Time


class Apps(Endpoint, AuthenticatedAPIView):
    """GET: which there are. DELETE {"client_id"}: end one; 200, or 404 where it has nothing."""

    http_method_names: ClassVar[list[str]] = ["get", "delete"]
    input_class: ClassVar = {"DELETE": EndInput}
    answers: ClassVar = {"GET": list[ShownService]}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        data: list[ShownService] = [
            {
                "client_id": one.client.id,
                "name": one.client.name,
                "scopes": one.scopes,
                "since": one.since.isoformat(),
            }
            for one in grants.agreements(request.user)
        ]
        return APIResponse(request, data=data)

    def delete(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        ended = grants.end_agreement(request.user, self.input.cleaned_data["client_id"])
        return APIResponse(request, status=200 if ended is not None else 404)


endpoint = Apps.as_api_view(client=Headless.APP)
