from shoal.controller.cli import controller

if __name__ == "__main__":
    controller(prog_name="shoal controller", auto_envvar_prefix="SHOAL_CONTROLLER")
