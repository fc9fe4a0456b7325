"""Traces of the Vidur simulator (Microsoft): ``arrived_at,num_prefill_tokens,num_decode_tokens``, in seconds."""

from telemetry.sources.traces.csv_rows import CsvFormat

VIDUR = CsvFormat(name="vidur", arrival="arrived_at", prompt="num_prefill_tokens", output="num_decode_tokens")
