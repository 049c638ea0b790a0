from tests.parity.golden import Golden


def check_sequences(golden: Golden) -> None: ...
