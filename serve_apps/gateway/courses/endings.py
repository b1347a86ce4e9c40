"""The end of a stream whose text is complete, although no engine is left to say so.

Owns: what the asker still gets, and the bill. Must not know: leases, engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scheduling import TokenUsage
from serve_apps.gateway.courses.engine_call import EventsAnswer
from serve_apps.gateway.courses.hedging import beginning_with
from serve_apps.gateway.courses.joined import EndedStream, last_events

if TYPE_CHECKING:
    from serve_apps.gateway.courses.course import Course, Deliver


async def end(course: Course, finish_reason: str | None, seen: TokenUsage, deliver: Deliver) -> None:
    """Deliver the events that are missing behind the last token. `finish_reason`: where that is missing too; `seen`:
    the usage, if no engine has told it."""
    assert course.sent is not None
    course.stall = None
    story = course.sent.story()
    usage = (course.usage if course.counted else None) or seen
    told = usage if course.request.wants_usage and not story.usage else None
    course.stream = EndedStream(usage)
    rest = last_events(course.request.path, story, told, finish_reason)
    await deliver(course, EventsAnswer(beginning_with(rest)))
    course.usage = usage
