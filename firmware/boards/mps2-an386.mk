# Arm MPS2 with FPGA image AN386: Cortex-M4F
CPU ?= -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard
MACHINE = mps2-an386
