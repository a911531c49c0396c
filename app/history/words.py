"""The words in which a request's way is told. Each sentence is true by itself and has its unit."""

from __future__ import annotations

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def time_text(ms: float) -> str:
    """Write a time: less than 0.1 ms, 11.2 ms, 312 ms, 1.25 s."""
    if ms < 0.05:
        return "less than 0.1 ms"
    if ms < 99.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.3g} s" if ms < 99_950 else f"{ms / 1000:.0f} s"


def count_text(count: int, noun: str, many: str = "") -> str:
    """Write a number of things: 1 row, 8 rows. `many`: where that isn't the noun with an s."""
    return f"1 {noun}" if count == 1 else f"{count} {many or f'{noun}s'}"


def ordinal(number: int) -> str:
    """Return the word for the position `number`, from 0 on."""
    return ORDINALS[number] if number < len(ORDINALS) else f"{number + 1}th"


# why an item waited

QUEUED = "in its queue"


def for_instance(number: int | None, running: int, instances: int) -> str:
    """`number`: of the instance that ran it, from 0 on; None if that is not known. `running`: how
    many other of the node's `instances` ran a batch when it became free.
    """
    if instances <= 1:
        return "for its only instance to be free"
    one = "an instance" if number is None else f"the {ordinal(number)} of {instances} instances"
    if running < instances - 1:
        return f"for {one} to be free"
    return f"for {one}: {'both' if instances == 2 else f'all {instances}'} were busy"


def behind(rows: int) -> str:
    return f"behind {count_text(rows, 'row')} that went before it"


def for_more_items(timeout_ms: float) -> str:
    return (
        "for more items: another instance ran on its device, and a batch that is not full then "
        f"waits for up to {timeout_ms:g} ms (batching_timeout)"
    )


def for_downstream() -> str:
    return (
        "because its results that the nodes after it have not finished held more than an eighth of "
        "max_memory"
    )


def for_loop() -> str:
    return "until the event loop and the instance's thread came to it"


def waited(node: str, why: str, time: str) -> str:
    return f"Waited {time} at node {node} {why}."


def unfinished(node: str, rows: int, batches: int, ran_ms: float, time: str) -> str:
    """`rows`: how many others were started there meanwhile. `batches`: how many ran there, for
    `ran_ms` of the time.
    """
    text = f"Waited {time} at node {node} {QUEUED} until the request ended"
    if rows:
        text += f"; {count_text(rows, 'other row')} started there meanwhile"
    if batches:
        text += f"; {count_text(batches, 'batch of others', 'batches of others')} ran there for "
        text += f"{time_text(ran_ms)} of that"
    return f"{text}."


# batches


def rule_words(rule: str, timeout_ms: float) -> str:
    """Say why a batch started when it did. `rule`: as `BatchStart.rule`."""
    return {
        "idle": "It started at once: an instance was idle.",
        "freed": "It started as soon as an instance was free.",
        "full": "It started because it was full, while another instance ran on its device.",
        "late": f"It started {timeout_ms:g} ms after its first item (batching_timeout), while "
        "another instance ran on its device.",
        "downstream": "It started when the nodes after it had room again.",
    }.get(rule, "")


def bounded(limit: int, most: int) -> str:
    return (
        f"It could have {limit} of {count_text(most, 'row')}, because more came than can be "
        "answered in time."
    )


def in_batch(rows: int, others: int | None) -> str:
    """`others`: how many other requests ran in it; None if that is not known."""
    if others:
        return f"in a batch of {rows} with {count_text(others, 'other')}"
    return "alone" if rows == 1 else f"in a batch of {count_text(rows, 'row')}"


def ran(node: str, batch: str, time: str) -> str:
    return f"Ran {time} at node {node} {batch}".rstrip() + "."


def took(node: str, parts: int, between_ms: float, time: str) -> str:
    """`between_ms`: the time in which none of the parts was at a node; 0 if that is not told."""
    text = f"Took {time} at node {node} for its {count_text(parts, 'part')}."
    if between_ms:
        text += (
            f" For {time_text(between_ms)} of that none of them was at a node: parts of other "
            "requests took their turns, or code of the node ran."
        )
    return text


def ran_on(node: str, time: str) -> str:
    return f"Had run {time} at node {node} when the request ended, and ran on."


def ran_long(node: str, batch: str, usual_ms: float, time: str) -> str:
    return f"Ran {time} at node {node} {batch}; batches there took {time_text(usual_ms)} lately."


def ran_again(node: str, rows: int, time: str) -> str:
    if rows == 1:
        return f"Ran twice at node {node}, {time} together: the first time it failed."
    batch = f"Its batch of {count_text(rows, 'row')} at node {node}"
    return f"{batch} failed, so its items ran again one by one: {time} together."


# outside of nodes


def received(time: str) -> str:
    return f"It took {time} until its body had come and was read, turns of the event loop included."


def for_turn(time: str) -> str:
    return (
        f"It waited {time} for its turn: the steps of a sequence run one after another, and a "
        "sequence begins when it has a place (max_sequences)."
    )


def answered(time: str) -> str:
    return (
        f"After the last node it took {time} until its answer was ready, turns of the event loop "
        "included."
    )


def ended_after(time: str) -> str:
    return f"After the last node it took {time} until the request ended."


def no_node(time: str) -> str:
    return f"It came to no node within {time}."


def between(time: str) -> str:
    return f"Between nodes it took {time}."


# answers of others


def cached(source: str, time: str) -> str:
    """`source`: where the answer was kept, cache or redis."""
    where = "the cache" if source == "cache" else "the cache in Redis"
    return f"Answered from {where} in {time}: an equal request had come before it. Nothing ran."


def joined(request_id: str, answered: bool, time: str) -> str:
    """`request_id`: of the request that it joined. `answered`: that one's answer was its own."""
    end = f"got its answer in {time}" if answered else f"waited {time} for its answer"
    return f"Joined an equal request that was under way ({request_id}), and {end}."


# how it ended


def refused(code: str, detail: str) -> str:
    advice = {
        "queue_full": "Send it again after the seconds in Retry-After.",
        "overloaded": "Send it again after the seconds in Retry-After, or with a later deadline.",
        "memory_full": "Send it again after the seconds in Retry-After, or send less at a time.",
        "not_ready": "Send it again when /health/ready answers 200.",
    }.get(code, "")
    return f"Refused: {_clause(detail) or code}. {advice}".rstrip()


def failed(code: str, detail: str, in_part: bool) -> str:
    what = "A part of it failed" if in_part else "Failed"
    return f"{what}: {_clause(detail) or code} ({code})." if code else f"{what}."


def bad_input(code: str, detail: str) -> str:
    return f"Not a request that can be answered: {_clause(detail) or code} ({code})."


def expired(detail: str) -> str:
    return f"Its deadline passed: {_clause(detail)}." if detail else "Its deadline passed."


def left(ms: float) -> str:
    return f"The client left after {time_text(ms)}, before it had an answer."


def nothing_waited(ms: float, node: str, ran_ms: float) -> str:
    """`node`: where it ran longest, "" if it came to none."""
    if not node:
        return f"Nothing waited for long: {time_text(ms)}, and it came to no node."
    return (
        f"Nothing waited for long: {time_text(ms)}, of which node {node} ran {time_text(ran_ms)}."
    )


def of_several(text: str, count: int, longest_ms: float) -> str:
    """Say that a sentence is about `count` times together."""
    return f"{text.removesuffix('.')} ({count} times, {time_text(longest_ms)} at most)."


def not_remembered(visits: int) -> str:
    more = count_text(visits, "more visit")
    return f"{more} of nodes by its items or parts {'is' if visits == 1 else 'are'} not remembered."


def _clause(text: str) -> str:
    return text.strip().rstrip(".")
