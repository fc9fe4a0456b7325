"""BurstGPT: ChatGPT and GPT-4 traffic of a university (HPMLL/BurstGPT, CC-BY-4.0).

Columns ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``, later releases with ``Session ID`` and
``Elapsed time``. ``Timestamp`` is in seconds from the start. The files with failures hold requests of 0 response
tokens: like in every format these are left out and counted.
"""

from telemetry.sources.traces.csv_rows import CsvFormat

BURSTGPT = CsvFormat(
    name="burstgpt",
    arrival="Timestamp",
    prompt="Request tokens",
    output="Response tokens",
    session="Session ID",
    model="Model",
    request_class="Log Type",
)
