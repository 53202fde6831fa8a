"""What a replica tells of ended requests, for tests."""

from sparktier.configs.contracts.ended import EndedPage, EndedRequest
from support import replica_http
from support.deployment import wait_until


def page(url: str, after: int = 0) -> EndedPage:
    """Return a page of the list of the replica at `url`."""
    answer = replica_http.get(f"{url}/sparktier/ended?after={after}", timeout=60.0)
    assert answer.status_code == 200, answer.text
    return EndedPage.model_validate_json(answer.content)


def ended(url: str, request_id: str) -> list[EndedRequest]:
    """Return what the replica tells of one request, once nothing of it runs."""
    wait_until(lambda: request_id not in page(url).in_flight, timeout_s=60.0, what=lambda: f"the end of {request_id}")
    found, after = [], 0
    while (shown := page(url, after)).ended:
        found += [each for each in shown.ended if each.request_id == request_id]
        after = shown.ended[-1].seq
    return found
