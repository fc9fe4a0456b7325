"""The compiled loop over seconds and servers: prompts, decoding, watts, breaker. `simulator.row.plant` calls it.

It stands in a room of its own so that only a change of the loop compiles it again. Its rule is written plainly in
docs/power.md; tests run it beside a second writing of that text.
"""

import numpy as np
import numpy.typing as npt

from solver.compiled import compiled

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@compiled
def advance(
    first_s: int,
    seconds: int,
    # requests, by request in order of server and arrival
    arrival_s: Floats,
    prompt_s: Floats,
    output_tokens: Floats,
    finish_s: Floats,
    next_request: Numbers,
    end_request: Numbers,
    # what each server is doing
    prompt_request: Numbers,
    prompt_left_s: Floats,
    batch: Numbers,
    left_tokens: Floats,
    member: Numbers,
    # clocks: factors of prompt seconds, token seconds and watts by server, and who stands still
    prompt_factor: Floats,
    token_factor: Floats,
    watt_factor: Floats,
    stopped_w: Floats,
    # constants: [gpu idle W, prompt W above idle, token W above idle by batch ..., fixed W, W per GPU watt]
    token_s: Floats,
    token_above_w: Floats,
    constants: Floats,
    is_low: Flags,
    # breaker: [budget W, e^(-1/tau), trip theta, theta, trips]
    breaker: Floats,
    # written by second: watts of row and classes, theta; by second modulo SPAN_S and server: watts
    row_w: Floats,
    low_w: Floats,
    high_w: Floats,
    theta_after: Floats,
    recent_w: Floats,
    done: Numbers,
) -> None:
    """Run the seconds [first_s, first_s + seconds), in place."""
    servers = next_request.shape[0]
    places = left_tokens.shape[1]
    idle_w = constants[0]
    prompt_above_w = constants[1]
    fixed_w = constants[2]
    per_gpu_watt = constants[3]
    for second in range(first_s, first_s + seconds):
        low = 0.0
        high = 0.0
        ring = second % recent_w.shape[0]
        for server in range(servers):
            if stopped_w[server] >= 0.0:
                watts = stopped_w[server]
            else:
                used = 0.0
                sequences = batch[server]
                kp = prompt_factor[server]
                while 1.0 - used > 1e-9:
                    if prompt_request[server] < 0:
                        following = next_request[server]
                        if (
                            following >= end_request[server]
                            or sequences >= places
                            or arrival_s[following] >= second + used
                        ):
                            break
                        prompt_request[server] = following
                        prompt_left_s[server] = prompt_s[following]
                        next_request[server] = following + 1
                    need = prompt_left_s[server] * kp
                    room = 1.0 - used
                    if need <= room:
                        used += need
                        request = prompt_request[server]
                        left_tokens[server, sequences] = output_tokens[request]
                        member[server, sequences] = request
                        sequences += 1
                        prompt_request[server] = -1
                    else:
                        prompt_left_s[server] -= room / kp
                        used = 1.0
                rest = 1.0 - used
                gpu_w = idle_w + used * prompt_above_w * watt_factor[server]
                if sequences > 0 and rest > 1e-9:
                    made = rest / (token_s[sequences] * token_factor[server])
                    gpu_w += rest * token_above_w[sequences] * watt_factor[server]
                    kept = 0
                    for place in range(sequences):
                        left = left_tokens[server, place] - made
                        if left <= 0.0:
                            finish_s[member[server, place]] = second + 1.0
                            done[0] += 1
                        else:
                            left_tokens[server, kept] = left
                            member[server, kept] = member[server, place]
                            kept += 1
                    sequences = kept
                batch[server] = sequences
                watts = fixed_w + per_gpu_watt * gpu_w
            recent_w[ring, server] = watts
            if is_low[server]:
                low += watts
            else:
                high += watts
        low_w[second] = low
        high_w[second] = high
        row_w[second] = low + high
        draw = (low + high) / breaker[0]
        steady = draw * draw
        before = breaker[3]
        after = steady + (before - steady) * breaker[1]
        breaker[3] = after
        theta_after[second] = after
        if before < breaker[2] <= after:
            breaker[4] += 1.0
