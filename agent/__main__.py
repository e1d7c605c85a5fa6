from shoal.agent.cli import main

main()
