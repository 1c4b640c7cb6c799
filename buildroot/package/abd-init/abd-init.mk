################################################################################
#
# abd-init
#
################################################################################

# Built from the tree this file lies in, never from a download: an image and its sources are one commit.
ABD_INIT_VERSION = local
ABD_INIT_SITE = $(BR2_EXTERNAL_ABD_PATH)/..
ABD_INIT_SITE_METHOD = local
ABD_INIT_LICENSE = MIT or Apache-2.0
ABD_INIT_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = --exclude /target --exclude /out

ABD_INIT_INSTALL_TARGET = NO
ABD_INIT_INSTALL_IMAGES = YES

# Local sources are not vendored by Buildroot's cargo step, so cargo gets the crates itself, held to Cargo.lock, before
# the build, which is then offline. The flags are those of scripts/image.
define ABD_INIT_BUILD_CMDS
	cd $(@D) && \
		$(TARGET_MAKE_ENV) $(PKG_COMMON_CARGO_ENV) cargo fetch --locked --target $(RUSTC_TARGET_NAME)
	cd $(@D) && \
		$(TARGET_MAKE_ENV) $(TARGET_CONFIGURE_OPTS) $(PKG_CARGO_ENV) \
		CARGO_TARGET_$(call UPPERCASE,$(RUSTC_TARGET_NAME))_RUSTFLAGS="-Ctarget-feature=+crt-static --remap-path-prefix=$(@D)=/abd --remap-path-prefix=$(BR_CARGO_HOME)=/cargo" \
		cargo build --offline --locked --profile appliance -p abd-appliance --bin abd-init
endef

define ABD_INIT_INSTALL_IMAGES_CMDS
	$(INSTALL) -D -m 0755 $(@D)/target/$(RUSTC_TARGET_NAME)/appliance/abd-init $(BINARIES_DIR)/abd-init
endef

$(eval $(cargo-package))
