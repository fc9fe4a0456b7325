"""Asks many engines for their metrics at once, each within five seconds and 4 MiB.

It exists so that a service's traffic can be read without a Prometheus server. It knows neither pods nor Kubernetes:
names and addresses come in, samples or reasons go out, in the form that `telemetry.traffic.TrafficEstimator.update`
takes.
"""

import asyncio
import ipaddress
from collections.abc import Callable, Mapping

import httpx

from solver.domain.errors import InputError
from telemetry.engine_sample import EngineSample
from telemetry.sources.bounded_http import MOST_BYTES, TIMEOUT_S, fetched, http_client
from telemetry.sources.engines import read_engine_metrics

AT_ONCE = 100


def metrics_url(address: str, port: int, path: str = "/metrics") -> str:
    """Return the address of a pod's metrics page; ``address`` is an IP address."""
    host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    return f"http://{host}:{port}{path}"


async def scrape(
    urls: Mapping[str, str],
    *,
    engine: str,
    clock: Callable[[], float],
    model_name: str | None = None,
    timeout_s: float = TIMEOUT_S,
    most_bytes: int = MOST_BYTES,
    client: httpx.AsyncClient | None = None,
) -> dict[str, EngineSample | str]:
    """Ask every pod (name to address) and return its sample or, in one line, why there is none.

    ``clock`` tells seconds since 1970; a sample is of the time at which its page was complete.
    """
    if client is None:
        async with http_client() as own:
            return await scrape(
                urls,
                engine=engine,
                clock=clock,
                model_name=model_name,
                timeout_s=timeout_s,
                most_bytes=most_bytes,
                client=own,
            )
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, url: str) -> EngineSample | str:
        try:
            async with places:
                _, body = await fetched(client, url, source=name, timeout_s=timeout_s, most_bytes=most_bytes)
            # Counts of requests are ASCII; what else is on the page may be in any state.
            text = body.decode("utf-8", errors="replace")
            return read_engine_metrics(text, engine=engine, t_s=clock(), source=name, model_name=model_name)
        except InputError as error:
            return _without(name, str(error))

    answers = await asyncio.gather(*(one(name, url) for name, url in urls.items()))
    return dict(zip(urls, answers, strict=True))


def scraped(
    urls: Mapping[str, str],
    *,
    engine: str,
    clock: Callable[[], float],
    model_name: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, EngineSample | str]:
    """Do `scrape` from a thread that runs no event loop."""
    return asyncio.run(scrape(urls, engine=engine, clock=clock, model_name=model_name, timeout_s=timeout_s))


def _without(name: str, reason: str) -> str:
    """Leave out the pod's name, which whoever reads the answer knows."""
    return reason.removeprefix(f"{name}: ")
