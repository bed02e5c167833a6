"""What tests do with mails: wait for them, and send their tokens back."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from service.api.http.app_keys import SERVICES
from service.domain.jobs import JobKind
from service.providers.mail import Mailer
from service.settings.settings import Settings
from service.use_cases.jobs import Worker
from service.use_cases.mails import Mails
from tests.api.assertions import assert_problem
from tests.factories import Answer, Api
from tests.stand_ins.smtp import Mail, SmtpServer
from tests.waiting import until

NEW_PASSWORD = "two ships in the harbour"
ANNA = "anna@example.com"


@dataclass(frozen=True)
class Postman:
    """Does the mail jobs of a service that does none itself: when a test says so."""

    worker: Worker
    smtp: SmtpServer

    @classmethod
    def of(cls, api: Api, settings: Settings, smtp: SmtpServer) -> "Postman":
        assert settings.mail is not None
        mails = Mails(
            api.app[SERVICES].database,
            Mailer(settings.mail, settings.service_name),
            api.clock,
            service_name=settings.service_name,
            app_url=settings.mail.app_url,
            hash_key=settings.hash_key,
        )
        worker = Worker(api.app[SERVICES].database, {JobKind.MAIL: mails.deliver}, api.clock)
        return cls(worker, smtp)

    async def deliver(self) -> list[Mail]:
        """Do all jobs that are due; return the mails that were sent, in their order."""
        before = len(self.smtp.mails)
        while await self.worker.work_one(JobKind.MAIL):
            pass
        return self.smtp.mails[before:]

    async def tokens(self) -> list[str]:
        """Do all jobs that are due; return the tokens in the mails, in their order."""
        return [token_in(mail) for mail in await self.deliver() if mail.links]


def token_in(mail: Mail) -> str:
    """Return the token in the mail's link."""
    [link] = mail.links
    return urlsplit(link).fragment.removeprefix("token=")


async def mailed(smtp: SmtpServer, to: str, subject: str, count: int = 1) -> list[Mail]:
    """Wait for so many mails to somebody with these words in the subject."""

    def found() -> list[Mail]:
        return [mail for mail in smtp.mails_to(to) if subject in mail.message["Subject"]]

    await until(lambda: len(found()) >= count)
    return found()


async def forgotten(api: Api, smtp: SmtpServer, email: str = ANNA, count: int = 1) -> str:
    """Ask for a reset; return the token that was mailed."""
    assert (await api.post("/auth/password/forgot", {"email": email})).status == 202
    return token_in((await mailed(smtp, email, "Reset", count))[-1])


async def reset(api: Api, token: str, new_password: str = NEW_PASSWORD) -> Answer:
    return await api.post("/auth/password/reset", {"token": token, "new_password": new_password})


async def confirm(api: Api, token: str) -> Answer:
    return await api.post("/auth/email/confirm", {"token": token})


def assert_unusable(answer: Answer) -> None:
    assert_problem(answer, 422, "token-unusable", ["#/token"])
