"""What one attempt asks of the queue, and what it is charged in the end.

Owns: the ticket of an attempt. Must not know: engines, who grants leases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scheduling import Ticket, TokenUsage

if TYPE_CHECKING:
    from serve_apps.gateway.courses.course import Course


def ticket_of(course: Course, attempt: str, expires_at_s: float, avoid: tuple[str, ...]) -> Ticket:
    """`attempt` tells this ticket from the request's others."""
    request = course.request
    sent = course.continuation.events if course.continuation is not None else 0
    left = max(1, request.max_output_tokens - sent) if sent else request.max_output_tokens
    return Ticket(
        # With its owner: a worker that takes work over must not meet the ticket of the one it took it from.
        ticket_id=f"{course.request_id}.{attempt}@{course.leases.gateway_id}",
        owner=course.leases.gateway_id,
        tenant=course.caller.tenant,
        request_class=request.request_class,
        prompt_tokens=request.prompt_tokens + sent,
        max_output_tokens=left,
        arrived_at_s=course.arrived_at_s,
        session=request.session,
        expires_at_s=expires_at_s,
        avoid=avoid,
        key=course.caller.key_id,
        program=request.program,
        deadline_at_s=request.deadline_at_s,
        prefix=request.prefix,
        # The first attempt's prompt is on the tenant's account already.
        charged_tokens=left if course.continuation is not None else None,
    )


def used_now(before: TokenUsage | None, after: TokenUsage | None) -> TokenUsage | None:
    """What a lease is charged with: of a stream that went on only what came in addition, and its prompt for free."""
    if before is None or after is None:
        return after
    return TokenUsage(after.prompt_tokens, after.prompt_tokens, max(0, after.output_tokens - before.output_tokens))


def most(after: TokenUsage | None, before: TokenUsage | None) -> TokenUsage | None:
    """What the client has got, where an attempt that repeats what was sent may end before it has."""
    if after is None or (before is not None and before.output_tokens > after.output_tokens):
        return before
    return after


def with_first_token(used: TokenUsage | None, course: Course) -> TokenUsage | None:
    """What was used, and how long after the lease the first token came: replicas' prefill rates are measured by it."""
    if used is None or course.ttft_s is None:
        return used
    first_token_s = course.ttft_s - course.queue_wait_s
    return TokenUsage(used.prompt_tokens, used.cached_tokens, used.output_tokens, first_token_s)
