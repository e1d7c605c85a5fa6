from shoal.deploy.cli import main

main()
