"""Traces of the SplitwiseSim simulator (Patel et al., ISCA 2024).

``request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size``, seconds from the start.
"""

from telemetry.sources.traces.csv_rows import CsvFormat

SPLITWISE_SIM = CsvFormat(
    name="splitwise-sim",
    arrival="arrival_timestamp",
    prompt="prompt_size",
    output="token_size",
    model="application_id",
)
