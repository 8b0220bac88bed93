"""A pipeline's step, unit of time by unit of time."""


def order(schedule, stage, stages, count):
    """What a stage does in order, (backward, micro-batch), by the words of the papers.

    GPipe (arXiv 1811.06965): all forwards, then all backwards in reverse. 1F1B (PipeDream): as many
    forwards as stages follow, then a forward and a backward in turn, then the backwards that are
    left; backwards in the order of the forwards.
    """
    gone, back, tasks = 0, 0, []
    while back < count:
        if schedule == "gpipe":
            forward = gone < count
        else:
            full = gone - back == stages - stage  # as many in flight as stages from here on
            forward = gone < count and not full
        if forward:
            tasks.append((False, gone))
            gone += 1
        else:
            tasks.append((True, count - 1 - back if schedule == "gpipe" else back))
            back += 1
    return tasks


def walked(schedule, count, forward, backward):
    """Start and end of each (stage, micro-batch, backward), by a clock that ticks in ones."""
    stages = len(forward)
    queues = [order(schedule, k, stages, count) for k in range(stages)]
    found, until, clock = {}, [0] * stages, 0
    while any(queues):
        for k, queue in enumerate(queues):
            if not queue or until[k] > clock:
                continue
            back, m = queue[0]
            if back:
                waits = (k + 1, m, True) if k + 1 < stages else (k, m, False)
            else:
                waits = (k - 1, m, False)
            if waits[0] >= 0 and (waits not in found or found[waits][1] > clock):
                continue
            until[k] = clock + (backward if back else forward)[k]
            found[k, m, back] = (clock, until[k])
            queue.pop(0)
        clock += 1
    return found
