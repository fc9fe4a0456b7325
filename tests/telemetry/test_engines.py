"""Metrics pages of vLLM and SGLang: versions, ranks, values that mean nothing, pages that are none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from telemetry.engine_sample import CumulativeHistogram, EngineSample, merged
from telemetry.sources.engines import ENGINES, MOST_LINES, read_engine_metrics
from tests.telemetry.engine_pages import TOKEN_EDGES, Engine


def read(text: str, engine: str = "vllm", model_name: str | None = None) -> EngineSample:
    return read_engine_metrics(text, engine=engine, t_s=100.0, source="chat-0", model_name=model_name)


def refused(text: str, engine: str = "vllm") -> str:
    with pytest.raises(InputError) as caught:
        read(text, engine)
    message = str(caught.value)
    assert "\n" not in message
    return message


def busy() -> Engine:
    engine = Engine(places=2)
    for prompt, output in ((10, 5), (150, 40), (150, 40), (6000, 2)):
        engine.arrive(prompt, output)
    engine.first_token()
    engine.finish()
    engine.first_token()
    return engine


def test_a_page_of_vllm() -> None:
    sample = read(busy().vllm())
    assert (sample.t_s, sample.engine, sample.missing) == (100.0, "vllm", ())
    assert (sample.running, sample.waiting, sample.finished_total) == (2, 1, 1)
    assert (sample.first_tokens_total, sample.preemptions_total) == (2, 0)
    assert sample.kv_use_ratio == 0.25
    assert sample.started_s == 0.0
    assert sample.prompt_tokens == CumulativeHistogram(
        edges=TOKEN_EDGES, cumulative=(0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), total=10
    )
    assert sample.generation_tokens is not None
    assert sample.generation_tokens.total == 5
    assert sample.prompt_sizes == sample.prompt_tokens
    assert "vllm:request_success_total" in sample.series
    assert "vllm:num_requests_waiting_by_reason" not in sample.series


def test_a_page_says_what_the_engine_counted() -> None:
    """Other tests take samples without the detour of a page."""
    engine = busy()
    engine.preempt()
    assert read(engine.vllm()) == engine.sample(100.0)


def test_a_page_of_sglang() -> None:
    sample = read(busy().sglang(), "sglang")
    assert (sample.running, sample.waiting, sample.finished_total, sample.missing) == (2, 1, 1, ())
    assert sample.kv_use_ratio == 0.5
    assert sample.first_tokens_total is None
    assert sample.prompt_tokens is not None
    assert sample.prompt_tokens.total == 10


def test_totals_stand_in_for_histograms() -> None:
    sample = read(busy().sglang(histograms=False), "sglang")
    assert sample.prompt_tokens is None
    assert sample.missing == ()
    assert sample.prompt_sizes == CumulativeHistogram(edges=(), cumulative=(1,), total=10)
    assert sample.generation_sizes == CumulativeHistogram(edges=(), cumulative=(1,), total=5)


def test_an_idle_engine_without_counters_has_finished_nothing() -> None:
    sample = read(Engine().sglang(), "sglang")
    assert (sample.finished_total, sample.missing) == (0.0, ())


def test_a_busy_engine_without_counters_misses_them() -> None:
    engine = Engine()
    engine.arrive(5, 5)
    sample = read(engine.sglang(), "sglang")
    assert sample.finished_total is None
    assert sample.missing == (
        "sglang:num_requests_total",
        "sglang:prompt_tokens_histogram",
        "sglang:generation_tokens_histogram",
    )


def test_an_idle_engine_that_counts_only_tokens_misses_the_requests() -> None:
    text = Engine().sglang() + 'sglang:prompt_tokens_total{model_name="m"} 5.0\n'
    assert read(text, "sglang").missing == (
        "sglang:num_requests_total",
        "sglang:generation_tokens_histogram",
    )


def test_data_parallel_ranks_are_summed() -> None:
    one, two = busy(), busy()
    two.arrive(9, 9)
    sample = read(one.vllm(engine="0") + two.vllm(engine="1", start_time=False))
    assert (sample.running, sample.waiting, sample.finished_total) == (4, 3, 2)
    assert sample.prompt_tokens is not None
    assert sample.prompt_tokens.count == 2
    assert sample.kv_use_ratio == 0.25


def test_ranks_that_repeat_each_other_count_once() -> None:
    rows = [
        f'sglang:num_running_reqs{{model_name="m",dp_rank="{dp}",tp_rank="{tp}",pp_rank="{pp}"}} {3 + dp}'
        for dp in (0, 1)
        for tp in (0, 1)
        for pp in (0, 1)
    ]
    assert read("\n".join(rows), "sglang").running == 3 + 4


def test_priorities_are_parts_of_the_total() -> None:
    text = "\n".join(
        f'sglang:num_queue_reqs{{model_name="m",priority="{priority}"}} {count}'
        for priority, count in (("", 5), ("0", 2), ("1", 3))
    )
    assert read(text, "sglang").waiting == 5


def test_queues_before_the_engine_are_waiting_too() -> None:
    text = busy().sglang() + 'sglang:num_decode_prealloc_queue_reqs{model_name="m"} 7\n'
    assert read(text, "sglang").waiting == 1 + 7
    old = busy().vllm() + 'vllm:num_requests_swapped{model_name="m",engine="0"} 2\n'
    assert read(old).waiting == 1 + 2
    assert read(old.replace("} 2\n", "} NaN\n")).waiting is None


def test_names_of_other_versions() -> None:
    old = busy().vllm().replace("kv_cache_usage_perc", "gpu_cache_usage_perc")
    old = old.replace("inter_token_latency_seconds", "time_per_output_token_seconds")
    sample = read(old)
    assert sample.kv_use_ratio == 0.25
    assert sample.inter_token_s is not None
    assert "vllm:time_per_output_token_seconds" in sample.series
    both = busy().vllm() + 'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.9\n'
    assert read(both).kv_use_ratio == 0.25  # the new name wins


def test_names_that_only_begin_alike_are_others() -> None:
    text = busy().sglang() + 'sglang:num_running_reqs_offline_batch{model_name="m"} 50\n'
    assert read(text, "sglang").running == 2


def test_only_the_asked_model_counts() -> None:
    page = busy().vllm(model="a") + busy().vllm(model="b", start_time=False)
    assert read(page, model_name="a").running == 2
    assert read(page).running == 4
    assert read(page, model_name="c").missing == (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:request_success_total",
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
    )


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "-Inf", "9223372036854775794", "1e300"])
@pytest.mark.parametrize(
    "name",
    ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:request_success_total"],
)
def test_values_that_mean_nothing_are_missing_not_zero(name: str, value: str) -> None:
    lines = busy().vllm().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(name + "{"))
    lines[at] = lines[at].rsplit(" ", 1)[0] + " " + value
    sample = read("\n".join(lines))
    assert sample.missing == (name,)
    two_ranks = "\n".join(lines) + "\n" + busy().vllm(engine="1", start_time=False)
    assert read(two_ranks).missing == (name,)


@pytest.mark.parametrize(
    ("find", "instead"),
    [
        (
            '_bucket{engine="0",model_name="m",le="10.0"} 1.0',
            '_bucket{engine="0",model_name="m",le="10.0"} NaN',
        ),
        (
            '_bucket{engine="0",model_name="m",le="20.0"} 1.0',
            '_bucket{engine="0",model_name="m",le="20.0"} 0.0',
        ),
        ('_sum{engine="0",model_name="m"} 10.0', '_sum{engine="0",model_name="m"} NaN'),
        (
            '_bucket{engine="0",model_name="m",le="+Inf"} 1.0',
            '_bucket{engine="0",model_name="m",le="9e9"} 1.0',
        ),
    ],
)
def test_a_broken_histogram_is_none(find: str, instead: str) -> None:
    find = "vllm:request_prompt_tokens" + find
    text = busy().vllm()
    assert find in text
    sample = read(text.replace(find, "vllm:request_prompt_tokens" + instead))
    assert sample.prompt_tokens is None
    assert sample.missing == ()  # the mean is known from the total
    both = text.replace(find, "vllm:request_prompt_tokens" + instead).replace("vllm:prompt_tokens_total", "x")
    assert read(both).missing == ("vllm:request_prompt_tokens",)


def test_stamps_of_the_page_win() -> None:
    assert read('vllm:num_requests_running{model_name="m"} 1 50000').t_s == 50.0
    two = [f'vllm:num_requests_running{{engine="{stamp}"}} 1 {stamp}' for stamp in (50_000, 60_000)]
    assert read("\n".join(two)).t_s == 50.0  # the oldest


@pytest.mark.parametrize(
    "text",
    [
        "<html><body>404</body></html>",
        '{"detail": "Not Found"}',
        "upstream connect error or disconnect/reset before headers",
        "\x00\x01\x02",
        "vllm:num_requests_running{",
        'vllm:num_requests_running{model_name="m"} many',
        'vllm:request_prompt_tokens_bucket{le="wide"} 1',
        'vllm:request_prompt_tokens_bucket{le="NaN"} 1',
        "vllm:num_requests_running 1_000",
    ],
)
def test_what_is_no_page_is_refused_in_one_line(text: str) -> None:
    message = refused(text)
    assert message.startswith("chat-0:1: ")
    assert len(message) < 300


def test_the_line_is_named() -> None:
    assert refused(busy().vllm() + "vllm:num_requests_running{ 5\n").startswith(
        f"chat-0:{busy().vllm().count(chr(10)) + 1}: 'vllm:num_requests_running{{ 5' is no line of metrics"
    )


def test_an_empty_page_and_another_programs_page_miss_everything() -> None:
    for text in ("", "\n\n", "# nothing yet\n", "go_goroutines 8\n"):
        assert len(read(text).missing) == 5


def test_twins_and_endless_pages_are_refused() -> None:
    line = 'vllm:num_requests_running{model_name="m"} 1\n'
    assert "twice" in refused(line * 2)
    assert f"at most {MOST_LINES}" in refused(line * (MOST_LINES + 1))


def test_an_unknown_engine_is_refused() -> None:
    assert "one of vllm, sglang" in refused("", engine="tgi")


LINE = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        sorted(name for names in ENGINES.values() for name in names.plain + names.histograms)
    ).flatmap(
        lambda name: st.tuples(
            st.sampled_from(["", "_bucket", "_sum", "_count"]),
            st.text(alphabet='{}",=\\le m1+InfN.#\t ', max_size=30),
        ).map(lambda rest: name + "".join(rest))
    ),
)


@given(lines=st.lists(LINE, max_size=8), engine=st.sampled_from(sorted(ENGINES)))
def test_no_text_does_more_than_be_refused(lines: list[str], engine: str) -> None:
    refusal = ""
    try:
        sample = read("\n".join(lines), engine)
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    if refusal:
        return
    for value in (sample.running, sample.waiting, sample.finished_total, sample.kv_use_ratio):
        assert value is None or (math.isfinite(value) and value >= 0)


def test_histograms_of_other_edges_are_not_added() -> None:
    one = CumulativeHistogram(edges=(1.0,), cumulative=(1, 2), total=5)
    assert merged([one, one]) == CumulativeHistogram(edges=(1.0,), cumulative=(2, 4), total=10)
    assert merged([one, CumulativeHistogram(edges=(2.0,), cumulative=(1, 2), total=5)]) is None
    assert merged([one, None]) is None
    assert merged([]) is None
