"""What people start: the command line, the terminal chat, the demo. Only here is anything printed or a device chosen."""

import logging

# transformers imports torchao where it is installed, which then tells of kernels for GPUs that it could not load
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
