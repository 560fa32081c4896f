"""The servers that one `support-bot student` looks after: the base student's and those of whole releases, or attached ones.

In: settings, and what the base student is. Out: what must go on until the command ends. Decides only which server is made how.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine

from conversations import releases
from conversations.errors import OutsideError
from conversations.prompt import Renderer
from conversations.releases import needs
from conversations.serving import Served
from conversations.settings import StudentTable
from conversations.store import Record
from support_bot.serving.pace import Pace, ServedStudent
from support_bot.serving.ports import why_not_listening
from support_bot.serving.real_prompts import RealPrompts
from support_bot.serving.supervisor import StudentSupervisor
from support_bot.serving.whole_release import whole_room, whole_student, why_whole_unfit
from support_bot.serving.whole_servers import WholeServers
from support_bot.settings import SupportBotSettings
from support_bot.vllm import VllmProcess, server_command, server_environment, server_url

log = logging.getLogger(__name__)


class Fleet:
    """The servers of one command: that of the base student and those of whole releases, or the attached ones."""

    def __init__(
        self,
        settings: SupportBotSettings,
        record: Record,
        base_release_id: str,
        served: Served,
        renderer: Renderer,
        say: Callable[[str], None],
        pace: Pace,
    ) -> None:
        self._student = settings.student
        self._record = record
        self._base_release_id = base_release_id
        self._served = served
        self._prompts = RealPrompts(record, renderer, settings.prompt, settings.redaction)
        self._log_folder = settings.record.path.parent / "logs"
        self._say = say
        self._pace = pace
        if self._student.servers:
            self._whole = None
            self.supervisors = [self._attached(address.rstrip("/")) for address in self._student.servers]
        else:
            self._whole = self._whole_servers()
            self.supervisors = [self._own()]

    def work(self) -> list[Coroutine[None, None, None]]:
        """Return what must go on until the command ends."""
        looking_after = [supervisor.run() for supervisor in self.supervisors]
        if self._whole is not None:
            looking_after.append(self._whole.run())
        return [*looking_after, self._settle()]

    async def _settle(self) -> None:
        """Forget, from time to time, the wishes that nothing needs any more."""
        while True:
            try:
                gone = await asyncio.to_thread(needs.settle, self._record, keep_hours=self._student.keep_hours)
                if gone:
                    self._say(f"student: needed no longer: {', '.join(gone)}")
            except OutsideError as error:
                log.warning("wishes are not settled: %s", error)
            await asyncio.sleep(self._pace.settle_seconds)

    def _attached(self, address: str) -> StudentSupervisor:
        def why_not(release: releases.Release) -> str:
            if any(supervisor.whole_id == release.release_id for supervisor in self.supervisors):
                return ""
            return (
                "none of [student] servers serves it; start a vLLM with "
                f"--model {release.weights_path} --served-model-name {release.release_id}, and name its address there"
            )

        return StudentSupervisor(
            self._record,
            self._served_student(self._base_release_id, address),
            self._prompts,
            new_process=None,
            why_not_whole=why_not,
            say=self._say,
            pace=self._pace,
        )

    def _own(self) -> StudentSupervisor:
        assert self._whole is not None
        return StudentSupervisor(
            self._record,
            self._served_student(self._base_release_id, server_url(self._student)),
            self._prompts,
            new_process=self._process(self._student, self._base_release_id, has_adapters=True),
            why_not_whole=self._whole.why_not,
            say=self._say,
            pace=self._pace,
        )

    def _whole_servers(self) -> WholeServers:
        student = self._student

        def supervisor(release: releases.Release, port: int) -> StudentSupervisor:
            its_own = whole_student(release, student, port)
            return StudentSupervisor(
                self._record,
                self._served_student(release.release_id, server_url(its_own), is_whole=True),
                self._prompts,
                new_process=self._process(its_own, release.release_id, has_adapters=False),
                say=self._say,
                pace=self._pace,
            )

        return WholeServers(
            self._record,
            supervisor,
            room=whole_room(student),
            misfit=lambda release: why_whole_unfit(release, student, self._served, self._base_release_id),
            is_free=lambda port: why_not_listening(student.host, port) is None,
            keep_hours=student.keep_hours,
            pace=self._pace,
        )

    def _served_student(self, release_id: str, base_url: str, *, is_whole: bool = False) -> ServedStudent:
        student = self._student
        return ServedStudent(student.base.name, release_id, base_url, self._served, is_whole, student.keep_hours)

    def _process(self, student: StudentTable, release_id: str, *, has_adapters: bool) -> Callable[[], VllmProcess]:
        command = server_command(student, release_id, has_adapters=has_adapters)
        environment = server_environment(student)
        log_path = self._log_folder / f"student-{student.port}.log"
        self._say(f"student: the log of vLLM is {log_path}")
        return lambda: VllmProcess(command, environment, log_path)
