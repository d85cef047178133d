"""The kit of plugin authors: a new distribution, and the examination of one."""
