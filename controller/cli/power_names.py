"""Names of power policies and breaker curves that commands offer.

It exists so that ``--help`` loads no policy: `solver.power.policies.named` and `solver.domain.power` define them, and a
test holds the lists together. It decides nothing.
"""

POLICY_NAMES = (
    "none",
    "one-threshold-low",
    "one-threshold-all",
    "polca",
    "polca-trained",
    "stepwise",
    "guard",
)
CURVES = (
    "rack_rpp_110pct_17min",
    "molded_case_135pct_2h",
    "fast_thermal_135pct_60s",
    "ups_failover_133pct_10s",
)
CUSTOM_CURVE = "custom"
