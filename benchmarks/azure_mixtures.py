"""Request-size mixtures shaped like the Azure conversation and code traces, so that benchmarks need no trace file.

Twenty representative sizes each (five bands of prompt size, four of output size inside each). Computed from
AzureLLMInferenceTrace_conv and _code (Azure Public Dataset, 2023, CC-BY 4.0): share, mean prompt tokens, mean output
tokens of each group.
"""

from solver.domain.gpu_mix import RequestBucket

_CONVERSATION = (
    (0.0715, 304, 50),
    (0.0748, 326, 94),
    (0.0732, 189, 157),
    (0.0246, 188, 234),
    (0.0728, 525, 80),
    (0.0796, 470, 104),
    (0.0739, 761, 288),
    (0.0281, 981, 460),
    (0.0742, 1090, 328),
    (0.0748, 1086, 402),
    (0.0770, 1087, 432),
    (0.0253, 1091, 588),
    (0.0449, 1901, 61),
    (0.0449, 1871, 111),
    (0.0453, 1445, 227),
    (0.0151, 1250, 454),
    (0.0289, 4090, 37),
    (0.0309, 4052, 55),
    (0.0301, 3991, 91),
    (0.0101, 3970, 187),
)
_CODE = (
    (0.0696, 221, 8),
    (0.0727, 210, 12),
    (0.0823, 229, 27),
    (0.0252, 252, 138),
    (0.0541, 1003, 7),
    (0.0940, 1023, 11),
    (0.0760, 1009, 25),
    (0.0260, 996, 119),
    (0.0573, 2090, 7),
    (0.0879, 2067, 11),
    (0.0787, 2048, 26),
    (0.0263, 2008, 135),
    (0.0322, 3629, 7),
    (0.0557, 3633, 11),
    (0.0468, 3642, 26),
    (0.0153, 3653, 168),
    (0.0274, 6800, 8),
    (0.0317, 6790, 12),
    (0.0304, 6763, 27),
    (0.0104, 6760, 121),
)


def _buckets(rows: tuple[tuple[float, int, int], ...]) -> tuple[RequestBucket, ...]:
    return tuple(
        RequestBucket(rate_rps=share, input_tokens=float(prompt), output_tokens=float(output))
        for share, prompt, output in rows
    )


CONVERSATION = _buckets(_CONVERSATION)
"""Mean prompt about 1155, mean output about 211 tokens."""
CODE = _buckets(_CODE)
"""Mean prompt about 2048, mean output about 28 tokens."""
