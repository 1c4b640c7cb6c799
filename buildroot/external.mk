include $(sort $(wildcard $(BR2_EXTERNAL_ABD_PATH)/package/*/*.mk))

# The kernel configuration is that of scripts/image, to the option: every fragment laid over `allnoconfig`, then checked.
# Buildroot's own fragment support starts from a defconfig instead, where each option that no fragment names
# comes out as upstream's default. So the one line that makes the base configuration is replaced here.
ABD_KERNEL_FRAGMENTS = base net storage xen lab

define ABD_LINUX_COLLECT_OPTIONS
	sed -n '/^CONFIG_/p' $(foreach name,$(ABD_KERNEL_FRAGMENTS),$(BR2_EXTERNAL_ABD_PATH)/../kernel-config/$(name).fragment) > $(@D)/abd.config
endef
LINUX_POST_PATCH_HOOKS += ABD_LINUX_COLLECT_OPTIONS

LINUX_KCONFIG_DEFCONFIG = KCONFIG_ALLCONFIG=$(LINUX_DIR)/abd.config allnoconfig

define ABD_LINUX_CHECK_OPTIONS
	$(BR2_EXTERNAL_ABD_PATH)/../scripts/lib/check-kernel-config --config $(@D)/.config $(ABD_KERNEL_FRAGMENTS)
endef
LINUX_POST_CONFIGURE_HOOKS += ABD_LINUX_CHECK_OPTIONS
