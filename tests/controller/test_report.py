"""The GPU-mix report: stands alone, is whole HTML, has every section, and is the same bytes for the same study."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from controller.reports import known_errors
from controller.reports.gpu_mix import Run, render_report, saving_ratio, write_report
from controller.trace_planning import TraceQuestion, at_rate, build_instance, read_catalogues
from controller.trace_study import TraceStudy, scaled_slo, study_trace
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import parse_slo
from solver.gpu_mix.solve import SolveOptions
from solver.performance.capacity import MatrixRule, throughput_rps
from solver.performance.protocol import ReplicaKind
from tests.controller.test_cli_demo import small_trace

SECTIONS = [
    "headline",
    "sizes",
    "arrivals",
    "mix",
    "singles",
    "rehearsal",
    "bound",
    "rate",
    "slo",
    "second",
    "left-out",
    "definitions",
    "provenance",
]
VOID = {"meta", "br", "img", "hr", "link", "input"}
RUN = Run(version="0", trace_kind="made by a test", command="ballast demo", wall_s=None)
ROOT = Path(__file__).resolve().parents[2]


class Reader(HTMLParser):
    """Checks that tags close in order; collects ids, tags and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sections: list[str] = []
        self.spoken = 0
        self.plots = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, tag: str, found: dict[str, str | None]) -> None:
        assert tag not in {"script", "img", "link", "iframe", "image"}, tag
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "section":
            self.sections.append(str(found["id"]))
        if tag == "svg":
            self.plots += 1
            self.spoken += bool(found.get("aria-label")) and found.get("role") == "img"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> TraceStudy:
    """Study a small trace: two models, one of which the small card cannot hold."""
    path = small_trace(tmp_path_factory.mktemp("report") / "<t & co>.csv", requests=120)
    question = TraceQuestion(
        models=("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"),
        slo=parse_slo("ttft_p99=2,tbt_p99=0.1"),
        gpu_types=("A40", "H100-SXM"),
        largest_bucket_count=6,
    )
    return study_trace(path, question, options=SolveOptions())


@pytest.fixture(scope="module")
def page(study: TraceStudy) -> str:
    """Render it once."""
    return render_report(study, RUN)


def test_is_whole_html_with_every_section(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.sections == SECTIONS
    assert reader.plots == 7
    assert reader.spoken == reader.plots
    assert len(reader.ids) == len(set(reader.ids))


def test_points_to_nothing_outside(page: str) -> None:
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "://" not in without_names
    assert "@import" not in page
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", page)


def test_references_inside_plots_exist(page: str) -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    pointed = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert pointed
    assert pointed <= ids


def test_names_from_outside_are_escaped(page: str) -> None:
    assert "<t & co>" not in page
    assert "&lt;t &amp; co&gt;.csv" in page


def test_equal_studies_give_equal_bytes(study: TraceStudy, page: str) -> None:
    assert render_report(study, RUN) == page


def test_says_what_the_study_says(study: TraceStudy, page: str) -> None:
    assert study.plan.objective is not None
    assert f"{study.plan.objective:,.2f} US$ per hour" in page
    assert study.trace_sha256 in page
    for single in study.base.singles:
        assert f"only {single.gpu_type}" in page
    for item in study.base.left_out:
        assert item.reason in page


def test_nothing_half_written(study: TraceStudy, tmp_path: Path) -> None:
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(InputError, match="directory"):
        write_report(study, tmp_path / "taken.html", RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.html"]
    write_report(study, tmp_path / "new" / "demo.html", RUN)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo.html"]


def test_single_types_cost_what_their_models_cost(study: TraceStudy) -> None:
    names = {model.name for model in study.instance.models}
    for single in study.base.singles:
        assert set(single.cost_usd_per_h) | set(single.reasons) == names
        assert not set(single.cost_usd_per_h) & set(single.reasons)
    assert study.base.cost_usd_per_h == pytest.approx(sum(map(study.base.model_cost_usd_per_h, names)))
    assert study.fractional_usd_per_h is not None
    assert study.base.cost_usd_per_h is not None
    assert study.fractional_usd_per_h <= study.base.cost_usd_per_h + 1e-9


@pytest.mark.parametrize("factor", [0.25, 3.0, 16.0])
def test_scaled_rates_leave_throughputs_as_they_are(factor: float) -> None:
    """The sweep over rates builds the matrix once; building it anew at the other rate must give the same."""
    catalogues = read_catalogues()
    buckets = [
        RequestBucket(rate_rps=1.5, input_tokens=300.0, output_tokens=80.0),
        RequestBucket(rate_rps=0.5, input_tokens=1500.0, output_tokens=300.0),
    ]
    scaled = [
        RequestBucket(
            rate_rps=b.rate_rps * factor, input_tokens=b.input_tokens, output_tokens=b.output_tokens
        )
        for b in buckets
    ]
    question = TraceQuestion(
        models=("meta-llama/Llama-3.1-8B",), slo=parse_slo("ttft_p99=2,tbt_p99=0.1"), gpu_types=("H100-SXM",)
    )
    once = build_instance(buckets, question, catalogues, name="x").instance
    anew = build_instance(scaled, question, catalogues, name="x").instance
    assert at_rate(once, factor) == anew
    kind = ReplicaKind(
        model="meta-llama/Llama-3.1-8B", gpu_type="H100-SXM", gpus_per_replica=1, precision="bf16"
    )
    model = catalogues.book.performance(kind)
    mixed = throughput_rps(model, buckets, question.slo, rule=MatrixRule.MIXED)
    assert throughput_rps(model, scaled, question.slo, rule=MatrixRule.MIXED) == pytest.approx(
        mixed, rel=1e-9
    )


def test_scaled_slo_keeps_metrics_and_percentiles() -> None:
    assert str(scaled_slo(parse_slo("ttft_p99=2,tbt_p90=3x"), 0.5)) == "ttft_p99=1,tbt_p90=1.5x"


def test_savings() -> None:
    assert saving_ratio(9.0, 12.0) == pytest.approx(0.25)
    assert saving_ratio(12.0, 9.0) == pytest.approx(-1 / 3)
    assert saving_ratio(1.0, None) is None
    assert saving_ratio(0.0, 0.0) is None


def test_known_errors_are_those_of_the_documentation() -> None:
    accuracy = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    rows = [line for line in accuracy.splitlines() if line.startswith("|")]
    seconds, unseen, watts = (
        [row for row in rows if mark in row] for mark in ("| met |", "| Splitwise ", "| all |")
    )
    for known in known_errors.STEP_TIMES:
        table, _, _ = known.what.partition(",")
        candidates = seconds if "left out" in known.what else unseen
        assert any(row.startswith(f"| {table} |") and known.median in row for row in candidates), known
    assert any(known_errors.WATTS.median in row and "| 415 |" in row for row in watts)
    capacity = (ROOT / "docs" / "capacity-accuracy.md").read_text(encoding="utf-8")
    row = next(line for line in capacity.splitlines() if line.startswith("| conversation |"))
    assert known_errors.CAPACITY.median in row
    assert row.rstrip(" |").endswith(f"of {known_errors.CAPACITY.rows}")
