"""An application and its user."""

import pytest

from tests.factories import Api, Person
from tests.oauth import Application, new_application


@pytest.fixture
async def anna(api: Api) -> Person:
    return await api.new_person()


@pytest.fixture
async def application(api: Api) -> Application:
    return await new_application(api)
