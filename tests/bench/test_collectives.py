"""What devices exchange, read from the text of a program."""

import pytest

from jaxeff.bench import collectives

#: A loop over updates with a loop over time in it, as XLA prints them; asynchronous outside.
PROGRAM = """HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%reducing (x: f32[2,3]) -> f32[2,3] {
  %x = f32[2,3]{1,0} parameter(0)
  ROOT %inner = f32[2,3]{1,0:T(8,128)} all-reduce(%x), channel_id=1, to_apply=%add
}

%time_body (state: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %called = f32[2,3]{1,0} call(%state), to_apply=%reducing
}

%time_condition (state: (s32[], f32[2,3])) -> pred[] {
  %reached = pred[] all-gather(%flag), channel_id=2, dimensions={0}
}

%updates_body (state: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %time = (s32[], f32[2,3]) while(%state), condition=%time_condition, body=%time_body
  %grads = (bf16[64,10]{0,1}, f32[]{:T(128)}, s32[8]) all-reduce(%g, %n, %i), to_apply=%add
}

%updates_condition (state: (s32[], f32[2,3])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (param: f32[4]) -> f32[4] {
  %start = f32[5]{0} all-reduce-start(%param), channel_id=4, to_apply=%add
  %done = f32[5]{0} all-reduce-done(%start)
  %sent = ((f32[6]{0}, f32[]), f32[6]{0}, f32[]) all-reduce-start(%param, %n), to_apply=%add
  %gathered = (f32[4]{0}, f32[32]{0}) all-gather-start(%param), channel_id=5, dimensions={0}
  %both = f32[32]{0} all-gather-done(%gathered)
  %updates = (s32[], f32[2,3]) while(%both), condition=%updates_condition, body=%updates_body
}
"""


def test_bytes_and_loops_of_every_exchange():
    assert collectives(PROGRAM) == [
        ("all-reduce", 24, 2),
        ("all-gather", 1, 2),
        ("all-reduce", 64 * 10 * 2 + 4 + 32, 1),
        ("all-reduce", 20, 0),
        ("all-reduce", 28, 0),
        ("all-gather", 128, 0),
    ]


@pytest.mark.parametrize("text", ["", "HloModule nothing\n\nENTRY %main () -> f32[] {\n}\n"])
def test_a_program_that_exchanges_nothing(text):
    assert collectives(text) == []
