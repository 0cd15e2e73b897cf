"""The fault rig: real parts under control (broker, microphones, disk, proxy, node), and the promises tried on them."""
