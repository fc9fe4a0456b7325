"""The plain CSV of Ballast: ``arrival_s,prompt_tokens,output_tokens`` and, where known, ``session,model,class``.

It is what `telemetry.sources.traces.write` writes, and the target of ``ballast trace import``. Other columns, such as
``request_id``, are passed over.
"""

from telemetry.sources.traces.csv_rows import CsvFormat

PLAIN = CsvFormat(
    name="plain",
    arrival="arrival_s",
    prompt="prompt_tokens",
    output="output_tokens",
    session="session",
    model="model",
    request_class="class",
)
