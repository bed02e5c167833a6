"""An application that acts for users and for itself."""

import pytest

from service.domain.scopes import OF_CLIENTS
from tests.factories import Api, Person
from tests.oauth import Application, new_application


@pytest.fixture
async def anna(api: Api) -> Person:
    return await api.new_person()


@pytest.fixture
async def application(api: Api) -> Application:
    """A client that acts for users, and for itself."""
    return await new_application(api, own_scopes=OF_CLIENTS)
