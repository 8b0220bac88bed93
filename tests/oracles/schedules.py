"""A pipeline's step, unit of time by unit of time."""


def order(schedule, device, devices, count, chunks=1):
    """What a device does in order, as (stage, micro-batch, backward, part), by words of the papers.

    GPipe (arXiv 1811.06965): all forwards, then all backwards in reverse. 1F1B (PipeDream): as many
    forwards as stages follow, then a forward and a backward in turn, then the backwards that are
    left; backwards in the order of the forwards. Interleaved (arXiv 2104.04473): 1F1B over pairs of
    a stage and a micro-batch, of which the i-th is told by its place in a round of all stages of
    the device; the first device is 2 (D - 1) pairs ahead of the last and each further stage costs a
    round of D. ZB-H1 (arXiv 2401.10241): a stage is 1F1B with gradients of weights apart, of which
    as many wait as stages come before it.
    """
    gone, back, done, steps = 0, 0, 0, []
    total = count * chunks

    def pair(i, backward):
        place = (i % (devices * chunks)) // devices
        chunk = chunks - 1 - place if backward else place
        return chunk * devices + device, i // (devices * chunks) * devices + i % devices

    while back < total:
        most = devices - device
        if schedule == "interleaved":
            most = 2 * (devices - 1 - device) + (chunks - 1) * devices + 1
        if gone < total and (schedule == "gpipe" or gone - back < most):
            steps.append((*pair(gone, False), False, "all"))
            gone += 1
            continue
        i = total - 1 - back if schedule == "gpipe" else back
        stage, m = pair(i, True)
        steps.append((stage, m, True, "inputs" if schedule == "zb-h1" else "all"))
        back += 1
        while schedule == "zb-h1" and (back - done > device or (back == total and done < total)):
            steps.append((device, done, True, "weights"))
            done += 1
    return steps


def walked(schedule, count, durations, chunks=1):
    """Start and end of each (stage, micro-batch, backward, part), by a clock that ticks in ones.

    Durations are by stage: of forwards, of whole backwards, and of their part that is of weights.
    """
    forward, backward, weights = durations
    stages = len(forward)
    devices = stages // chunks
    queues = [order(schedule, d, devices, count, chunks) for d in range(devices)]
    found, until, clock = {}, [0] * devices, 0
    part = "inputs" if schedule == "zb-h1" else "all"
    while any(queues):
        for d, queue in enumerate(queues):
            if not queue or until[d] > clock:
                continue
            k, m, back, own = queue[0]
            waits = (k - 1, m, False, "all")
            if own == "weights":
                waits = (k, m, True, "inputs")
            elif back:
                waits = (k + 1, m, True, part) if k + 1 < stages else (k, m, False, "all")
            if waits[0] >= 0 and (waits not in found or found[waits][1] > clock):
                continue
            lasts = {"all": backward[k], "weights": weights[k], "inputs": backward[k] - weights[k]}
            until[d] = clock + (lasts[own] if back else forward[k])
            found[queue.pop(0)] = (clock, until[d])
        clock += 1
    return found
