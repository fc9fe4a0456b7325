"""Azure LLM inference traces of 2023 (conversation and code), 2024 (one week of each) and 2025 (multimodal).

Published by Azure (AzurePublicDataset; Patel et al., Splitwise, ISCA 2024). Calendar stamps of 100 ns, in 2024 with a
zone behind them. The 2025 trace has ``NumImages`` too, which is passed over: what an image costs depends on the model.
"""

from telemetry.sources.traces.csv_rows import CsvFormat
from telemetry.sources.traces.fields import Kind

AZURE = CsvFormat(
    name="azure",
    arrival="TIMESTAMP",
    arrival_kind=Kind.STAMP,
    prompt="ContextTokens",
    output="GeneratedTokens",
)
