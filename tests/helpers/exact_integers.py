"""Integer programs in Python's integers, written from the words of `OPERATIONS` alone."""

from jaxeff.quantize import arithmetic

TABLE = [int(entry) for entry in arithmetic.TANH_TABLE]


def word(x):
    """Returns x, which must fit into 32 bits."""
    assert -(2**31) <= x < 2**31, f"{x} leaves 32 bits"
    return x


def shift_right(x, bits):
    return word(((x >> (bits - 1)) + 1) >> 1) if bits else x


def shifted(x, bits):
    return word(x << bits) if bits >= 0 else shift_right(x, -bits)


def tanh_of(magnitude, bits):
    position = min(shifted(magnitude, bits), (5 << 15) - 1)
    index, between = position >> 10, position & 1023
    return TABLE[index] + shift_right(word((TABLE[index + 1] - TABLE[index]) * between), 10)


def tanh(x, fraction):
    y = tanh_of(abs(x), 15 - fraction)
    return y if x >= 0 else -y


def logistic(x, fraction):
    y = tanh_of(abs(x), 14 - fraction)
    return shift_right(32768 + (y if x >= 0 else -y), 1)


def dense(a, i):
    rows, result = i.constant.tolist(), []
    for column, multiplier in enumerate(i.multipliers.tolist()):
        total = 0
        for x, row in zip(a, rows, strict=True):
            total = word(total + x * row[column])
        total = word(total << i.attributes["left"])
        assert 0 <= multiplier <= 32767
        result.append(shift_right(word(total * multiplier >> 16), i.attributes["right"]))
    return result


def lookup(x, i):
    at, table = i.attributes, i.constant.tolist()
    position = word((min(max(x, at["start"]), at["end"]) - at["start"]) << at["left"])
    low, high = table[position >> 16], table[(position >> 16) + 1]
    return low + shift_right(word((high - low) * ((position & 65535) >> 1)), 15)


def step(program, state, x, started):
    """Returns all values of a step, lists of integers, from lists of integers."""
    values = [None] * len(program.widths)
    for number, vector in zip((*program.inputs, *program.state), (x, *state), strict=True):
        values[number] = vector
    for i in program.instructions:
        operands, at, op = [values[n] for n in i.inputs], i.attributes, i.op
        if op == "constant":
            result = i.constant.tolist()
        elif op == "dense":
            result = dense(operands[0], i)
        elif op in ("add", "sub"):
            sign = 1 if op == "add" else -1
            sums = (
                word(word(a << at["left_a"]) + sign * word(b << at["left_b"]))
                for a, b in zip(*operands, strict=True)
            )
            result = [shift_right(s, at["right"]) for s in sums]
        elif op == "mul":
            result = [shift_right(word(a * b), at["right"]) for a, b in zip(*operands, strict=True)]
        elif op == "rescale":
            result = [shift_right(word(a << at["left"]), at["right"]) for a in operands[0]]
        elif op in ("neg", "abs"):
            result = [-a if op == "neg" else abs(a) for a in operands[0]]
        elif op in ("max", "min"):
            result = [(max if op == "max" else min)(a, b) for a, b in zip(*operands, strict=True)]
        elif op in ("tanh", "logistic"):
            result = [globals()[op](a, at["input_fraction"]) for a in operands[0]]
        elif op == "lookup":
            result = [lookup(a, i) for a in operands[0]]
        elif op == "first":
            result = operands[1] if started else operands[0]
        elif op == "concatenate":
            result = [x for vector in operands for x in vector]
        elif op == "slice":
            result = operands[0][at["start"] : at["stop"]]
        else:
            assert op == "take"
            result = i.constant[operands[0][0]].tolist()
        high = 2 ** (program.bits[i.output] - 1) - 1
        values[i.output] = [min(max(r, -high - 1), high) for r in result]
        assert len(result) == program.widths[i.output]
    return values


def run(program, inputs):
    """Returns the outputs of one sequence of integer vectors."""
    state, outputs = [vector.tolist() for vector in program.initial_state], []
    for t, x in enumerate(inputs):
        values = step(program, state, x, t > 0)
        state = [values[n] for n in program.next_state]
        outputs.append(values[program.outputs[0]])
    return outputs
