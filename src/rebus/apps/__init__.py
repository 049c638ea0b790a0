"""What people start: the command line, the terminal chat, the demo. Only here is anything printed or a device chosen."""
